//! What nvdisasm prints, as instructions and natural loops.

use std::collections::{BTreeMap, BTreeSet};

/// One machine instruction.
#[derive(Debug)]
pub(crate) struct Instruction {
    /// With modifiers, as `LDG.E.128`.
    pub(crate) opcode: String,
    /// Whether a predicate guards it.
    guarded: bool,
    operands: String,
}

/// The code of one kernel, with the subroutines that the compiler put behind it.
#[derive(Debug, Default)]
pub(crate) struct Routine {
    pub(crate) instructions: Vec<Instruction>,
    labels: BTreeMap<String, usize>,
}

/// A natural loop.
#[derive(Debug)]
pub(crate) struct Loop {
    /// Its instructions, by number.
    pub(crate) body: BTreeSet<usize>,
}

impl Routine {
    /// The section of `entry` in what `nvdisasm -c` prints.
    pub(crate) fn parse(text: &str, entry: &str) -> Option<Self> {
        let section = format!(".text.{entry}:");
        let mut lines = text.lines().skip_while(|line| line.trim() != section);
        lines.next()?;
        let mut out = Self::default();
        for line in lines.take_while(|line| !line.starts_with("//---")) {
            let line = line.trim();
            if let Some(instruction) = Instruction::parse(line) {
                out.instructions.push(instruction);
            } else if let Some(label) = line.strip_suffix(':') {
                out.labels.insert(label.to_owned(), out.instructions.len());
            }
        }
        Some(out)
    }

    /// How many instructions of `among` match a pattern.
    pub(crate) fn count<'a>(&self, pattern: &str, among: impl IntoIterator<Item = &'a usize>) -> usize {
        among.into_iter().filter(|&&i| self.instructions[i].is(pattern)).count()
    }

    /// How many instructions match a pattern.
    pub(crate) fn count_all(&self, pattern: &str) -> usize {
        self.instructions.iter().filter(|instruction| instruction.is(pattern)).count()
    }

    /// The main loop: of the loops that hold `pattern`, and hold no smaller one that does, the one with the most of it.
    pub(crate) fn main_loop(&self, pattern: &str) -> Option<Loop> {
        let holding: Vec<Loop> =
            self.loops().into_iter().filter(|candidate| self.count(pattern, &candidate.body) > 0).collect();
        let innermost = |candidate: &&Loop| {
            !holding
                .iter()
                .any(|inner| inner.body.len() < candidate.body.len() && inner.body.is_subset(&candidate.body))
        };
        let best = holding.iter().filter(innermost).max_by_key(|found| self.count(pattern, &found.body))?;
        Some(Loop { body: best.body.clone() })
    }

    /// All natural loops: for each instruction that dominates a predecessor of its own, what reaches it from there.
    pub(crate) fn loops(&self) -> Vec<Loop> {
        let count = self.instructions.len();
        let successors: Vec<Vec<usize>> = (0..count).map(|i| self.successors(i)).collect();
        let mut predecessors = vec![Vec::new(); count];
        for (i, to) in successors.iter().enumerate() {
            to.iter().for_each(|&to| predecessors[to].push(i));
        }
        let reached = reach([0], &successors, None);
        let mut out = Vec::new();
        for head in (0..count).filter(|&i| reached[i] && predecessors[i].len() > usize::from(i > 0)) {
            // What is no longer reached without the head is dominated by it.
            let without = reach([0], &successors, Some(head));
            let latches: Vec<usize> =
                predecessors[head].iter().copied().filter(|&i| reached[i] && !without[i]).collect();
            if latches.is_empty() {
                continue;
            }
            let body = reach(latches, &predecessors, Some(head));
            out.push(Loop { body: (0..count).filter(|&i| i == head || (body[i] && reached[i])).collect() });
        }
        out
    }

    /// Where control goes from instruction `i`. A call returns behind itself.
    fn successors(&self, i: usize) -> Vec<usize> {
        let Instruction { opcode, guarded, operands } = &self.instructions[i];
        let name = opcode.split('.').next().unwrap_or_default();
        let mut out: Vec<usize> = match name {
            "BRA" | "BRX" | "JMP" | "JMX" => {
                targets(operands).filter_map(|label| self.labels.get(label)).copied().collect()
            }
            _ => Vec::new(),
        };
        // A branch may also carry its condition as an operand, before the label.
        let conditional = *guarded || (name == "BRA" && !operands.starts_with("`("));
        let leaves = matches!(name, "BRA" | "BRX" | "JMP" | "JMX" | "EXIT" | "RET" | "KILL");
        if !leaves || conditional {
            out.push(i + 1);
        }
        out.retain(|&to| to < self.instructions.len());
        out
    }
}

impl Instruction {
    /// A line such as `/*0100*/   @!P0 BRA `(.L_x_3) ;`.
    fn parse(line: &str) -> Option<Self> {
        let (address, rest) = line.strip_prefix("/*")?.split_once("*/")?;
        u64::from_str_radix(address, 16).ok()?;
        let mut rest = rest.trim().trim_end_matches(';').trim();
        let guarded = rest.starts_with('@');
        if guarded {
            rest = rest.split_once(' ')?.1.trim();
        }
        let (opcode, operands) = rest.split_once(' ').unwrap_or((rest, ""));
        let whole = opcode.starts_with(|first: char| first.is_ascii_uppercase());
        whole.then(|| Self { opcode: opcode.to_owned(), guarded, operands: operands.trim().to_owned() })
    }

    /// Whether the opcode is one of `pattern`'s: alternatives between `|`, with `*` for anything; modifiers may follow.
    pub(crate) fn is(&self, pattern: &str) -> bool {
        pattern.split('|').any(|pattern| {
            let mut parts = pattern.split('*');
            let Some(mut rest) = self.opcode.strip_prefix(parts.next().unwrap_or_default()) else { return false };
            for part in parts {
                let Some(at) = rest.find(part) else { return false };
                rest = &rest[at + part.len()..];
            }
            rest.is_empty() || rest.starts_with('.') || pattern.ends_with('*')
        })
    }
}

/// Labels such as `.L_x_12` in the operands of a branch.
fn targets(operands: &str) -> impl Iterator<Item = &str> {
    operands
        .split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '$')))
        .filter(|word| word.starts_with(".L"))
}

/// Which are reached from `starts` along `edges`, never through `barred`.
fn reach(starts: impl Into<Vec<usize>>, edges: &[Vec<usize>], barred: Option<usize>) -> Vec<bool> {
    let mut seen = vec![false; edges.len()];
    let mut open = starts.into();
    while let Some(i) = open.pop() {
        if Some(i) != barred && i < edges.len() && !std::mem::replace(&mut seen[i], true) {
            open.extend(&edges[i]);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An outer loop with a spin loop and a main loop, a slow path out of line, and the endless padding behind the end.
    const TEXT: &str = "
//--------------------- .text.other --------------------------
.text.other:
        /*0000*/                   EXIT ;
//--------------------- .text.example --------------------------
        .type           example,@function
example:
.text.example:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDG.E.128.CONSTANT R4, [R2.64] ;
.L_x_1:
        /*0020*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R3 ;
        /*0030*/              @!P0 BRA `(.L_x_1) ;
.L_x_2:
        /*0040*/                   IMMA.16864.U4.U4 R4, R8.ROW, R10.COL, R4 ;
        /*0050*/               @P1 BRA `(.L_x_5) ;
.L_x_3:
        /*0060*/                   CALL.REL.NOINC `($__internal_0_$div) ;
        /*0070*/                   BRA.U UP0, `(.L_x_2) ;
        /*0080*/               @P2 BRA `(.L_x_0) ;
        /*0090*/                   EXIT ;
.L_x_5:
        /*00a0*/                   IADD3 R1, R1, 0x1, RZ ;
        /*00b0*/                   BRA `(.L_x_3) ;
$__internal_0_$div:
        /*00c0*/                   RET.REL.NODEC R20 `(example) ;
.L_x_4:
        /*00d0*/                   BRA `(.L_x_4);
        /*00e0*/                   NOP;
//--------------------- .nv.shared --------------------------
";

    #[test]
    fn loops_are_those_of_the_control_flow() {
        let routine = Routine::parse(TEXT, "example").unwrap();
        assert_eq!(routine.instructions.len(), 15);
        let loops: Vec<Vec<usize>> = routine.loops().iter().map(|l| l.body.iter().copied().collect()).collect();
        // The slow path at 10 and 11 is part of the main loop though it lies behind the end; the padding is no loop.
        assert_eq!(loops, [vec![1, 2, 3, 4, 5, 6, 7, 8, 10, 11], vec![2, 3], vec![4, 5, 6, 7, 10, 11]]);
        let main = routine.main_loop("IMMA.16864.U4.U4").unwrap();
        assert_eq!(main.body.into_iter().collect::<Vec<_>>(), [4, 5, 6, 7, 10, 11]);
        assert!(routine.main_loop("HMMA").is_none() && Routine::parse(TEXT, "exam").is_none());
        assert_eq!(routine.main_loop("LDG").unwrap().body.len(), 10);
    }

    #[test]
    fn patterns_name_opcodes() {
        let of = |opcode: &str| Instruction { opcode: opcode.into(), guarded: false, operands: String::new() };
        assert!(
            of("LDG.E.128.CONSTANT").is("LDG*.128") && of("LDG.E").is("LDG") && of("LDGSTS.E.128").is("LDS|LDGSTS")
        );
        assert!(!of("LDGSTS.E").is("LDG") && !of("LDG.E.64").is("LDG*.128") && !of("STL").is("LDL|LD"));
        assert!(of("IGMMA.64x128x32.U8.U8").is("IGMMA*.U8.U8") && !of("IGMMA.64x128x32.S8.S8").is("IGMMA*.U8.U8"));
    }
}
