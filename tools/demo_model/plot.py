# SPDX-License-Identifier: Apache-2.0
"""Draw the log of train.py or lengthen.py as an SVG: python plot.py curves.csv curves.svg"""
import csv
import sys

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "demo"
matplotlib.rcParams["svg.fonttype"] = "none"
import matplotlib.pyplot as plt  # noqa: E402

rows = list(csv.DictReader(open(sys.argv[1])))


def col(name, by="tokens", unit=1e6, length=None):
    got = [(float(r[by]) / unit, float(r[name])) for r in rows if r[name] and (length is None or r["length"] == length)]
    return [x for x, _ in got], [y for _, y in got]


fig, (a, b) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
if "long_first" in rows[0]:
    a.plot(*col("text_loss", "seconds", 1), label="short documents", lw=1)
    a.plot(*col("long_text", "seconds", 1), label="long documents", lw=1)
    a.plot(*col("val_loss", "seconds", 1), "o-", label="held-out text, 256 tokens", ms=3, lw=1)
    a.set(title="Loss per token of text", xlabel="seconds on the GPU", ylabel="nats", ylim=(0.25, 0.6))
    for n in sorted({r["length"] for r in rows}, key=int):
        b.plot(*col("long_first", "seconds", 1, n), "o", label=f"{n} tokens", ms=2)
    b.set(title="First digits of recalled codes that are right", xlabel="seconds on the GPU", ylim=(0.5, 1.02))
else:
    a.plot(*col("text_loss"), label="training batches", lw=1)
    a.plot(*col("val_loss"), "o-", label="held-out text", ms=3, lw=1)
    a.set(title="Loss per token of text", xlabel="million tokens", ylabel="nats", yscale="log")
    b.plot(*col("recall_acc"), label="training batches", lw=1)
    for n in ("recall256", "recall1024", "recall2048"):
        b.plot(*col(n), "o-", label=f"held-out, {n[6:]} tokens", ms=3, lw=1)
    b.set(title="Digits of recalled codes that are right", xlabel="million tokens", ylim=(0, 1.02))
for x in (a, b):
    x.legend(frameon=False, fontsize=8)
    x.grid(alpha=0.3)
fig.savefig(sys.argv[2], metadata={"Date": None})
