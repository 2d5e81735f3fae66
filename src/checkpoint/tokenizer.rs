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
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(|e| Error::tokenizer(path, e))?;
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
        self.inner.decode(ids, true).map_err(|e| Error::tokenizer(&self.path, e))
    }

    /// The text of `ids`, special tokens written out.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the decoder fails.
    pub fn decode_with_special(&self, ids: &[u32]) -> Result<String, Error> {
        self.inner.decode(ids, false).map_err(|e| Error::tokenizer(&self.path, e))
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
        let encoding = self.inner.encode_fast(text, add_special).map_err(|e| Error::tokenizer(&self.path, e))?;
        Ok(encoding.get_ids().to_vec())
    }
}
