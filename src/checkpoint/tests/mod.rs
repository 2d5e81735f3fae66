mod blocks;
mod duquant_format;
mod fixtures;
mod float_formats;
mod hostile;
mod real_model;
mod tokenizers;
