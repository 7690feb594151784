"""One file per model family: vLLM's model class and processor with METok in them."""
