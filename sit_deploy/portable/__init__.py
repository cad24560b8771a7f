"""What runs a bundle where sit-deploy is not: the modules of a folder that `sit-deploy package python` writes.

The folder has this package and the modules that it imports, under the name sit_bundle, with `engines` beside it. All of them need
NumPy, Pillow and the engine's runtime, and nothing else: no PyTorch, no msgspec, no click. Imports among them are relative.
"""
