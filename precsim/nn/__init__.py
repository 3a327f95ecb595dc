"""Networks and optimizers, written in ops: functional pieces, a GPT, SGD and AdamW, loss scaling."""
