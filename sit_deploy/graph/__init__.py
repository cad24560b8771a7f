"""The ONNX graph between the PyTorch model and the engine.

Each module is imported by its own name, so that torch and onnx load only when they are needed.

    deploy_form     the model rewritten for inference, exactly: `to_deploy_form`
    folding         one layer folded into the next: `fold_batchnorm`, `fold_gain`, ...
    export          the deploy form as a float32 graph: `export_onnx`, `set_batch`
    write           a graph as a file: `write_graph`
    lint            proves a graph deployable: `lint`, `check`
    float16_ranges  observes what float16 would have to hold: `observe_float16_ranges`
    precision       writes FP16 or BF16 into a graph as explicit types: `to_precision`
    casts           which nodes compute in which type, so that Casts are fewest
    simulate        a low-precision graph on a CPU, and where it overflows: `simulate`, `first_non_finite`
    pixels          puts the normalisation of images into the graph: `take_pixels`
    inspect         what a graph holds: `summarize`, `count_macs`
"""
