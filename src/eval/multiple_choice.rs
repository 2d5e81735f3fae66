//! Zero-shot multiple choice by log-likelihood.

use super::losses::losses_behind;
use super::{Error, Task};
use crate::model::{Model, State};
use serde::Serialize;

/// A [`Task`] as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedTask {
    /// Tokens of the context alone.
    context: Vec<u32>,
    /// Tokens of context and ending together, and characters of the ending with its leading space.
    endings: Vec<(Vec<u32>, usize)>,
    label: usize,
}

impl TokenizedTask {
    /// Tokenizes the context, and the context with each ending, as whole texts.
    ///
    /// # Errors
    /// What `encode` says.
    pub fn new<E>(task: &Task, mut encode: impl FnMut(&str) -> Result<Vec<u32>, E>) -> Result<Self, E> {
        let context = encode(&task.context)?;
        let endings = task
            .endings
            .iter()
            .map(|ending| Ok((encode(&format!("{}{ending}", task.context))?, ending.chars().count())))
            .collect::<Result<_, E>>()?;
        Ok(Self { context, endings, label: task.label })
    }

    /// The error that the task makes, if any.
    fn check(&self, index: usize) -> Result<(), Error> {
        let what = if self.context.is_empty() {
            "the context holds no token"
        } else if self.endings.iter().any(|(tokens, _)| tokens.len() <= self.context.len()) {
            "an ending holds no token"
        } else if self.label >= self.endings.len() {
            "the label points at no ending"
        } else {
            return Ok(());
        };
        Err(Error::Task { index, what })
    }

    /// Tokens that every ending's text begins with and that stand before the first one to be predicted. Tokenizing the
    /// whole text may cut the seam differently from the context alone, so this can be shorter than the context.
    fn shared(&self) -> usize {
        let Some(((first, _), others)) = self.endings.split_first() else { return 0 };
        let agree = |(other, _): &(Vec<u32>, usize)| first.iter().zip(other).take_while(|(a, b)| a == b).count();
        others.iter().map(agree).min().unwrap_or(0).min(self.context.len() - 1)
    }
}

/// How many tasks were answered right.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Accuracy {
    /// Tasks.
    pub n: usize,
    /// Share of tasks where the right ending is the likeliest.
    pub acc: f64,
    /// Share of tasks where it is the likeliest per character (with its leading space).
    pub acc_norm: f64,
}

/// Answers each task with the ending whose tokens are likeliest behind the context: those of the whole text past the
/// context's length. Ties go to the first. `on_task` sees the number of each answered task.
///
/// # Errors
/// [`Error::NoTasks`] and [`Error::Task`] before anything runs, [`Error::Model`] otherwise.
pub fn multiple_choice(
    model: &Model,
    tasks: &[TokenizedTask],
    mut on_task: impl FnMut(usize),
) -> Result<Accuracy, Error> {
    tasks.iter().enumerate().try_for_each(|(index, task)| task.check(index))?;
    let longest = tasks.iter().flat_map(|task| &task.endings).map(|(tokens, _)| tokens.len()).max();
    let mut state = model.new_state(longest.ok_or(Error::NoTasks)?)?;
    let (mut right, mut right_norm) = (0_usize, 0_usize);
    for (index, task) in tasks.iter().enumerate() {
        let likelihoods = likelihoods(model, &mut state, task)?;
        let per_character =
            likelihoods.iter().zip(&task.endings).map(|(sum, (_, characters))| sum / *characters as f64);
        right_norm += usize::from(largest(per_character) == task.label);
        right += usize::from(largest(likelihoods.iter().copied()) == task.label);
        on_task(index);
    }
    let share = |count: usize| count as f64 / tasks.len() as f64;
    Ok(Accuracy { n: tasks.len(), acc: share(right), acc_norm: share(right_norm) })
}

/// Log-likelihood of each ending. The tokens that all endings share run once.
fn likelihoods(model: &Model, state: &mut State, task: &TokenizedTask) -> Result<Vec<f64>, Error> {
    let (context, shared) = (task.context.len(), task.shared());
    state.clear();
    if let Some((first, _)) = task.endings.first() {
        model.forward(state, &first[..shared])?;
    }
    task.endings
        .iter()
        .map(|(tokens, _)| {
            state.truncate(shared);
            let tokens = &tokens[shared..];
            let losses = losses_behind(model, state, &tokens[..tokens.len() - 1], &tokens[1..])?;
            // Token `context` of the whole text is the target of position `context - 1`.
            Ok(-losses[context - 1 - shared..].iter().sum::<f64>())
        })
        .collect()
}

fn largest(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (index, value) in values.enumerate() {
        if value > best.1 {
            best = (index, value);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(context: &str, endings: &[&str]) -> TokenizedTask {
        let endings = endings.iter().map(|&ending| ending.to_owned()).collect();
        let task = Task { context: context.into(), endings, label: 0 };
        TokenizedTask::new(&task, |text| Ok::<_, ()>(text.bytes().map(u32::from).collect())).unwrap()
    }

    #[test]
    fn the_last_context_token_is_never_shared() {
        // Its hidden state predicts the first token of each ending, so it must run with each.
        assert_eq!(task("abc", &[" x", " y"]).shared(), 2);
        assert_eq!(task("a", &["b", "c"]).shared(), 0);
    }

    #[test]
    fn endings_count_characters_and_not_bytes() {
        let task = task("q", &[" é€", " z"]);
        assert_eq!(task.endings.iter().map(|(_, characters)| *characters).collect::<Vec<_>>(), [3, 2]);
    }

    #[test]
    fn tasks_that_cannot_be_answered_say_why() {
        let what = |task: TokenizedTask| match task.check(7).unwrap_err() {
            Error::Task { index: 7, what } => what,
            other => panic!("{other}"),
        };
        assert_eq!(what(task("", &["a", "b"])), "the context holds no token");
        assert_eq!(what(task("a", &["b", ""])), "an ending holds no token");
        assert_eq!(what(TokenizedTask { label: 2, ..task("a", &["b", "c"]) }), "the label points at no ending");
        assert!(task("a", &["b", "c"]).check(0).is_ok());
    }

    #[test]
    fn ties_go_to_the_first_and_nan_never_wins() {
        assert_eq!(largest([-2.0, -1.0, -1.0].into_iter()), 1);
        assert_eq!(largest([f64::NAN, -5.0].into_iter()), 1);
    }
}
