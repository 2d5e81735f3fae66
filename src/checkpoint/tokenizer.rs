use super::Error;
use std::path::{Path, PathBuf};

/// Text to token ids and back, as the checkpoint's own tokenizer does it.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    bos: Option<u32>,
}

impl Tokenizer {
    /// Reads the bytes of a `tokenizer.json`. `path` is for error messages only.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when it is not one.
    pub fn from_json(path: &Path, json: &[u8]) -> Result<Self, Error> {
        // The tokenizers crate panics over some files that are not even JSON; those are told apart here.
        serde_json::from_slice::<serde::de::IgnoredAny>(json).map_err(|e| Error::tokenizer(path, e))?;
        let mut inner = guarded(path, || tokenizers::Tokenizer::from_bytes(json))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::tokenizer(path, e))?;
        let mut tokenizer = Self { path: path.into(), inner, bos: None };
        // What stands in front of an empty text is what the tokenizer adds to every text.
        tokenizer.bos = tokenizer.run("", true)?.first().copied();
        Ok(tokenizer)
    }

    /// The ids of `text`. Special tokens written out in the text count as such; nothing is added in front.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the text holds something that the vocabulary cannot express.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.run(text, false)
    }

    /// The ids of `text` behind the token that begins a text, where this tokenizer adds one.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_bos(&self, text: &str) -> Result<Vec<u32>, Error> {
        let mut ids: Vec<u32> = self.bos.into_iter().collect();
        ids.extend(self.run(text, false)?);
        Ok(ids)
    }

    /// The text of `ids`, special tokens left out.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        guarded(&self.path, || self.inner.decode(ids, true))
    }

    /// The text of `ids`, special tokens written out.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the decoder fails.
    pub fn decode_with_special(&self, ids: &[u32]) -> Result<String, Error> {
        guarded(&self.path, || self.inner.decode(ids, false))
    }

    /// The token that this tokenizer puts in front of a text; `None` where it puts none.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Tokens in the vocabulary, special ones included.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token as the vocabulary spells it.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The `tokenizer.json` that reads back as this tokenizer.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when it cannot be written as JSON.
    pub fn to_json(&self) -> Result<Vec<u8>, Error> {
        self.inner.to_string(false).map(String::into_bytes).map_err(|e| Error::tokenizer(&self.path, e))
    }

    fn run(&self, text: &str, add_special: bool) -> Result<Vec<u32>, Error> {
        let encoding = guarded(&self.path, || self.inner.encode_fast(text, add_special))?;
        Ok(encoding.get_ids().to_vec())
    }
}

/// Runs a call into the tokenizers crate. A `tokenizer.json` is a program for it: which parts are put together and with
/// which numbers. Some of its code unwraps what such a file may break (fuzzing found one), and to our caller that is a bad
/// file like any other.
fn guarded<T>(path: &Path, call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, Error> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| Error::tokenizer(path, e)),
        Err(_) => Err(Error::tokenizer(path, "the parts of this tokenizer do not fit each other")),
    }
}
