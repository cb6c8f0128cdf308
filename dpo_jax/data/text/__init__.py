"""record -> tokens: templates, tokenizers, truncation, the ledger."""
