"""Texts per second of base-mlx's embeddings beside sentence-transformers', on the CPU, in rounds that take turns.

    python3 embed.py --base-mlx PROGRAM --model FOLDER [--texts 256] [--tokens 100] [--threads 2] [--rounds 5]

Both have their model loaded and have embedded something before they are timed. base-mlx is asked over HTTP, all texts in
one request; sentence-transformers embeds them as it does by itself, in batches of 32 that it sorts by length, and in larger
ones, and the best of these counts.
"""

import argparse
import base64
import json
import random
import statistics
import struct
import subprocess
import time
import urllib.request

from sizes import count

WORDS = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which "
    "one you were all her she there would their we him been has when who will no more if out so said what up its about "
    "into than them can only other time new some could these two may first then do any like my now over such our man "
    "me even most made after also well did many before must years back through much where your way down should because "
    "long each just state those people too mr how little good world make very year still see own work men day get here"
).split()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base-mlx", required=True)
    parser.add_argument("--model", required=True)
    for name, default in [("texts", 256), ("tokens", 100), ("threads", 2), ("rounds", 5)]:
        parser.add_argument(f"--{name}", type=count, default=default)
    arguments = parser.parse_args()

    rng = random.Random(1)
    # Most of these words are one token, and two marks stand around a text.
    lengths = [rng.randint(arguments.tokens * 7 // 10, arguments.tokens * 13 // 10) for _ in range(arguments.texts)]
    texts = [" ".join(rng.choices(WORDS, k=max(1, length - 2))) for length in lengths]

    peer = Peer(arguments)
    ours = Ours(arguments)
    try:
        expected = peer.embed(texts, 32)
        found = ours.embed(texts)
        cosine = min(sum(a * b for a, b in zip(x, y)) for x, y in zip(expected.tolist(), found))
        print(f"{len(texts)} texts of {min(lengths)} to {max(lengths)} tokens, least cosine {cosine:.7f}")
        times = {"base-mlx": []} | {f"sentence-transformers, batches of {size}": [] for size in BATCHES}
        for _ in range(arguments.rounds):
            times["base-mlx"].append(timed(lambda: ours.embed(texts)))
            for size in BATCHES:
                times[f"sentence-transformers, batches of {size}"].append(timed(lambda: peer.embed(texts, size)))
    finally:
        ours.end()
    rates = {name: sorted(len(texts) / seconds for seconds in all) for name, all in times.items()}
    for name, all in rates.items():
        print(f"{name}: {statistics.median(all):.1f} texts/s ({all[0]:.1f}-{all[-1]:.1f})")
    best = max(statistics.median(all) for name, all in rates.items() if name != "base-mlx")
    print(f"ratio: {statistics.median(rates['base-mlx']) / best:.2f}")


class Peer:
    def __init__(self, arguments):
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(arguments.threads)
        self.model = SentenceTransformer(arguments.model, device="cpu")
        self.model.max_seq_length = 512

    def embed(self, texts, batch_size):
        return self.model.encode(texts, batch_size=batch_size, show_progress_bar=False)


class Ours:
    def __init__(self, arguments):
        self.server = subprocess.Popen(
            [arguments.base_mlx, "serve", "--model", arguments.model, "--device", "cpu", "--port", "0",
             "--threads", str(arguments.threads)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for line in self.server.stdout:
            words = [word for word in line.split() if word.startswith("http://")]
            if words:
                self.url = words[0].split("/v1")[0] + "/v1/embeddings"
                break
        self.embed(["warm"])

    def embed(self, texts):
        body = json.dumps({"input": texts, "encoding_format": "base64"}).encode()
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            data = json.load(answer)["data"]
        packed = [base64.b64decode(one["embedding"]) for one in data]
        return [struct.unpack(f"<{len(one) // 4}f", one) for one in packed]

    def end(self):
        self.server.terminate()
        self.server.wait()


def timed(work):
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


BATCHES = [32, 128]

if __name__ == "__main__":
    main()
