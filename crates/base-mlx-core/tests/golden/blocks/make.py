"""Makes blocks of every GGUF format, and the values that Python's `gguf` reads from them.

Usage: make.py [FOLDER]; needs `gguf` and `numpy`. For each format it writes NAME.blocks (eight blocks as in a file) and
NAME.values (little-endian f32). The blocks' bits are random; their scales are chosen so that each kind of 16-bit float
occurs: plain, negative, subnormal, zero, and too large to be multiplied by 8 within 16 bits.
"""

import sys
from pathlib import Path

import gguf
import numpy as np

# Where in a block its 16-bit floats lie.
SCALES_AT = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
}
SCALES = [0.0123, -0.77, 3.2e-7, 0.0, 1.5, -9.1e-5, 412.25, 60000.0]


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else __file__).absolute()
    folder = folder.parent if folder.is_file() else folder
    random = np.random.default_rng(20)
    for name, places in SCALES_AT.items():
        kind = gguf.GGMLQuantizationType[name]
        _, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (len(SCALES), size), dtype=np.uint8)
        for place in places:
            # Every second field goes through the list backwards, so that two fields differ.
            scales = np.array(SCALES if place == places[0] else SCALES[::-1], dtype="<f2")
            blocks[:, place : place + 2] = scales.view(np.uint8).reshape(-1, 2)
        values = gguf.dequantize(blocks, kind)
        (folder / f"{name}.blocks").write_bytes(blocks.tobytes())
        (folder / f"{name}.values").write_bytes(values.astype("<f4").tobytes())


main()
