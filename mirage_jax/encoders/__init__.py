"""Frozen encoders of the conditions: text (T5) and speech (wav2vec, Whisper).

`t5`, `wav2vec2` and `whisper` are the modules, each with a table of published
sizes; `*_names` say where the tensors of Hugging Face checkpoints go (`names`
moves them); `frames` gives speech features at the video's frame rate.
"""
