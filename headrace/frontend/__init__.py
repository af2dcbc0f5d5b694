"""Between text and tokens: tokenizer, chat templates, detokenizer, stop strings, the handles on engines."""
