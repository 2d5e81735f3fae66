//! Perplexity, multiple choice and speed.

mod error;
mod losses;
mod multiple_choice;
mod perplexity;
mod speed;
mod tasks;

pub use error::Error;
pub use losses::token_losses;
pub use multiple_choice::{Accuracy, TokenizedTask, multiple_choice};
pub use perplexity::{Perplexity, PerplexityOptions, perplexity};
pub use speed::{Speed, speed};
pub use tasks::{Task, TaskError, hellaswag, piqa};
