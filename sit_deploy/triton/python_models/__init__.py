"""Models of Triton's Python backend.

A repository gets copies of these files, each as its model.py or as a part beside it, and needs nothing else of sit-deploy: they run in the server's Python, with NumPy, ONNX Runtime or OpenVINO (network.py) and Pillow (decode.py).
"""
