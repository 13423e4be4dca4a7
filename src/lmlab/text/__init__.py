"""From text to tokens and back: tokenizer training and loading (survey, section 4.1.2), and the one chat renderer."""
