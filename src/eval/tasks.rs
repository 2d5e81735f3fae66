//! Multiple-choice tasks from their files.

use serde::Deserialize;

/// A context and endings, one of which is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// What comes before.
    pub context: String,
    /// What could come behind it, each with its leading space.
    pub endings: Vec<String>,
    /// Index of the right ending.
    pub label: usize,
}

/// Why a file holds no tasks.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TaskError {
    /// The file holds nothing.
    #[error("the file holds no tasks")]
    Empty,
    /// The file is compressed or otherwise no text.
    #[error("the file is not UTF-8 text; decompress it first, for example with bunzip2")]
    NotText,
    /// The number of lines does not divide into tasks.
    #[error("expected six lines a task (context, label, four endings), got {lines} lines")]
    Lines {
        /// Lines of the file.
        lines: usize,
    },
    /// A label that is not a number in range.
    #[error("line {line}: expected a label from 0 to {most}, got {got:?}")]
    Label {
        /// Line of the file, from 1.
        line: usize,
        /// The largest label.
        most: usize,
        /// What stands there.
        got: String,
    },
    /// A line without text where some is needed.
    #[error("line {line}: expected text, got an empty line")]
    Blank {
        /// Line of the file, from 1.
        line: usize,
    },
    /// A line that is not the JSON object that it should be.
    #[error("line {line}: expected an object with goal, sol1 and sol2: {source}")]
    Json {
        /// Line of the file, from 1.
        line: usize,
        /// What the parser said.
        source: JsonFault,
    },
    /// There are more tasks than labels, or fewer.
    #[error("expected one label a task: {tasks} tasks and {labels} labels")]
    Count {
        /// Tasks of the file.
        tasks: usize,
        /// Labels of the other file.
        labels: usize,
    },
}

/// What a JSON parser said, as text.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct JsonFault(String);

/// Reads HellaSwag in the six-line form: a context, the label, four endings, and again. Endings get a leading space.
///
/// # Errors
/// [`TaskError`] naming the line.
pub fn hellaswag(bytes: &[u8]) -> Result<Vec<Task>, TaskError> {
    let text = std::str::from_utf8(bytes).map_err(|_| TaskError::NotText)?;
    let lines: Vec<&str> = text.lines().collect();
    if lines.is_empty() {
        return Err(TaskError::Empty);
    }
    if !lines.len().is_multiple_of(6) {
        return Err(TaskError::Lines { lines: lines.len() });
    }
    if let Some(blank) = lines.iter().position(|line| line.trim().is_empty()) {
        return Err(TaskError::Blank { line: blank + 1 });
    }
    lines
        .chunks_exact(6)
        .enumerate()
        .map(|(index, task)| {
            let label = label(task[1], 6 * index + 2, 3)?;
            let endings = task[2..].iter().map(|ending| format!(" {ending}")).collect();
            Ok(Task { context: task[0].to_owned(), endings, label })
        })
        .collect()
}

#[derive(Deserialize)]
struct Piqa {
    goal: String,
    sol1: String,
    sol2: String,
}

/// Reads PIQA: one JSON object a line, and one label a line in a second file. The context is
/// `Question: {goal}\nAnswer:`; endings get a leading space.
///
/// # Errors
/// [`TaskError`] naming the line.
pub fn piqa(tasks: &[u8], labels: &[u8]) -> Result<Vec<Task>, TaskError> {
    let tasks = std::str::from_utf8(tasks).map_err(|_| TaskError::NotText)?;
    let labels = std::str::from_utf8(labels).map_err(|_| TaskError::NotText)?;
    let (tasks, labels): (Vec<_>, Vec<_>) = (tasks.lines().collect(), labels.lines().collect());
    if tasks.is_empty() {
        return Err(TaskError::Empty);
    }
    if tasks.len() != labels.len() {
        return Err(TaskError::Count { tasks: tasks.len(), labels: labels.len() });
    }
    tasks
        .iter()
        .zip(labels)
        .enumerate()
        .map(|(index, (task, text))| {
            let Piqa { goal, sol1, sol2 } = serde_json::from_str(task)
                .map_err(|fault| TaskError::Json { line: index + 1, source: JsonFault(fault.to_string()) })?;
            let endings = [sol1, sol2].iter().map(|ending| format!(" {ending}")).collect();
            Ok(Task { context: format!("Question: {goal}\nAnswer:"), endings, label: label(text, index + 1, 1)? })
        })
        .collect()
}

fn label(text: &str, line: usize, most: usize) -> Result<usize, TaskError> {
    let number = text.trim().parse().ok().filter(|&label| label <= most);
    number.ok_or_else(|| TaskError::Label { line, most, got: text.chars().take(40).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hellaswag_comes_in_six_lines() {
        let tasks = hellaswag(b"A man sits. he\n2\nruns.\nflies.\nstands up.\nsings.\r\n").unwrap();
        let endings = [" runs.", " flies.", " stands up.", " sings."].map(str::to_owned).to_vec();
        assert_eq!(tasks, [Task { context: "A man sits. he".into(), endings, label: 2 }]);
    }

    #[test]
    fn faults_of_hellaswag_name_the_line() {
        let task = "c\n0\na\nb\nc\nd\n";
        let fault = |text: String| hellaswag(text.as_bytes()).unwrap_err();
        assert_eq!(fault(String::new()), TaskError::Empty);
        assert_eq!(fault(format!("{task}c\n")), TaskError::Lines { lines: 7 });
        assert_eq!(fault(format!("{task}c\n4\na\nb\nc\nd\n")), TaskError::Label { line: 8, most: 3, got: "4".into() });
        assert_eq!(fault(format!("{task}c\n-1\na\nb\nc\nd")), TaskError::Label { line: 8, most: 3, got: "-1".into() });
        assert_eq!(fault(format!("{task}c\n1\na\n \nc\nd")), TaskError::Blank { line: 10 });
        assert_eq!(hellaswag(b"BZh91AY&SY\xff\xfe").unwrap_err(), TaskError::NotText);
    }

    #[test]
    fn piqa_comes_in_two_files() {
        let line = br#"{"goal": "dresser", "sol1": "a ", "sol2": "b", "more": 1}"#;
        let tasks = piqa(line, b"1\n").unwrap();
        let endings = vec![" a ".to_owned(), " b".to_owned()];
        assert_eq!(tasks, [Task { context: "Question: dresser\nAnswer:".into(), endings, label: 1 }]);
        assert_eq!(piqa(line, b"2\n").unwrap_err(), TaskError::Label { line: 1, most: 1, got: "2".into() });
        assert_eq!(piqa(line, b"1\n0\n").unwrap_err(), TaskError::Count { tasks: 1, labels: 2 });
        assert_eq!(piqa(b"", b"").unwrap_err(), TaskError::Empty);
        assert!(matches!(piqa(b"{\"goal\": 3}", b"1").unwrap_err(), TaskError::Json { line: 1, .. }));
    }
}
