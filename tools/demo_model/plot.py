# SPDX-License-Identifier: Apache-2.0
"""Draw curves.csv as an SVG: python plot.py curves.csv curves.svg"""
import csv
import sys

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "demo"
matplotlib.rcParams["svg.fonttype"] = "none"
import matplotlib.pyplot as plt  # noqa: E402

rows = list(csv.DictReader(open(sys.argv[1])))


def col(name):
    got = [(float(r["tokens"]) / 1e6, float(r[name])) for r in rows if r[name]]
    return [x for x, _ in got], [y for _, y in got]


fig, (a, b) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
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
