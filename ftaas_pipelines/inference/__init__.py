"""Templates, base models, decoding: shared by training's samples, evaluation and serving."""
