use crate::model;

/// Why an evaluation gave no number.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model could not be run.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The text does not fill one window.
    #[error(
        "the text has {tokens} tokens and one window takes {window}; give a longer text or a smaller window (at least 2)"
    )]
    TooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of a window.
        window: usize,
    },
    /// A window of fewer than two tokens has no target.
    #[error("a window of {window} tokens predicts nothing; expected at least 2")]
    Window {
        /// Tokens of a window.
        window: usize,
    },
    /// A task whose context or endings hold no token, or whose label points at no ending.
    #[error("task {index}: {what}")]
    Task {
        /// Which task, from 0.
        index: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// There is no task to answer.
    #[error("there are no tasks to answer")]
    NoTasks,
    /// A speed measurement needs tokens.
    #[error("cannot measure the speed of {prefill} prompt tokens and {decode} new ones; expected at least 1 and 0")]
    Speed {
        /// Tokens of the prompt.
        prefill: usize,
        /// Tokens behind it.
        decode: usize,
    },
}
