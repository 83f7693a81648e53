"""Text conditioning: tokenizer, CLIP text encoder, prompt embeddings."""
