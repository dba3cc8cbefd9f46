"""Backend `gguf`: the block types of llama.cpp, byte for byte as its files hold them."""
