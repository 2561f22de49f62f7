"""The embedded base models, and the program that makes them.

``tiny-causal/``, ``tiny-t5/`` and ``tiny-vision/`` are Hugging Face folders of one to two million parameters,
trained here from nothing, so that the platform runs end to end with no network and no GPU.
Make them again with ``python -m ftaas_pipelines.bases.make causal --out DIR``.
"""
