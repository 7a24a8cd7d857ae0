#!/usr/bin/env python3
"""Computes the tables and the figure of docs/placement.md with `cpuinfer plan`.

  tools/plan_tables.py [CPUINFER]            print the tables
  tools/plan_tables.py --update [CPUINFER]   write them into docs/placement.md, and docs/figures/plan.svg
  tools/plan_tables.py --check [CPUINFER]    exit 1 if page or figure is not what this program writes

CPUINFER is the program, build/tools/cpuinfer if not given. Nothing here is measured. Needs Python 3.9 or later, nothing
else.
"""
import json
import pathlib
import shlex
import subprocess
import sys

from doc_tables import filled, markdown, number, stale

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/placement.md"
FIGURE = ROOT / "docs/figures/plan.svg"
REMOTE = "60GB/s"  # assumption, for all

# Per node: cores, memory, and 90 % of the peak of its channels (channels x MT/s x 8 bytes), as tools/plot_scaling.py.
# name, what, nodes, cores of a node, memory of a node, GB/s of a node's channels, meeting
MACHINES = [
    ("Sapphire Rapids", "2 x Xeon Platinum 8480+", 2, 56, "512GiB", 8 * 4800 * 8e-3, "1.5us"),
    ("Granite Rapids", "2 x Xeon 6980P, SNC3", 6, 42, "256GiB", 12 * 8800 * 8e-3 / 3, "2us"),
    ("Genoa", "2 x EPYC 9654, NPS1", 2, 96, "768GiB", 12 * 4800 * 8e-3, "2us"),
    ("Turin", "2 x EPYC 9755, NPS1", 2, 128, "768GiB", 12 * 6000 * 8e-3, "2us"),
]
MODELS = [("30B-A3B", "qwen3-30b-a3b"), ("235B-A22B", "qwen3-235b-a22b")]
CONTEXTS = ["0", "32k", "128k", "256k"]


def machine_options(machine):
    _, _, nodes, cores, memory, peak, meeting = machine
    return ["--topology", f"numa:{nodes} core:{cores} pu:2", "--node-memory", memory, "--node-bandwidth",
            f"{0.9 * peak:.0f}GB/s", "--remote-bandwidth", REMOTE, "--meeting", meeting]


def plan(program, model, experts, options):
    command = [program, "plan", "--synthetic", model, "--experts", str(experts), "--ctx", "256k", "--rope-scaling",
               "yarn:8:32768", "--quiet", "--json", *options]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0: sys.exit(f"{shlex.join(command)}: exit {run.returncode}\n{run.stdout}{run.stderr}")
    return json.loads(run.stdout)


def tables(program):
    made = {}
    made["machines"] = markdown(["", "machine", "options of `cpuinfer plan`"],
                                [[m[0], m[1], f"`{shlex.join(machine_options(m))}`".replace("'", '"')] for m in MACHINES])

    rows = []
    for experts in (8, 16):
        row = [str(experts)]
        for nodes in (2, 3, 4, 6, 8):
            options = ["--topology", f"numa:{nodes} core:32 pu:1", "--node-memory", "768GiB", "--node-bandwidth", "250GB/s"]
            share = plan(program, MODELS[0][1], experts, options)["speed"]["whole_expert_share"]
            row.append(f"{experts / (nodes * share):.2f}, {100 * share:.0f} %")
        rows.append(row)
    made["whole experts"] = markdown(["K of 128"] + [f"{nodes} nodes" for nodes in (2, 3, 4, 6, 8)], rows)

    header = ["K", "context"] + [m[0] for m in MACHINES]
    for label, model in MODELS:
        speeds, shares = [], []
        for experts in (8, 16):
            plans = [plan(program, model, experts, machine_options(m))["speed"]["contexts"] for m in MACHINES]
            for i, context in enumerate(CONTEXTS):
                both = [(p[i]["slice"], p[i]["expert"]) for p in plans]
                speeds.append([str(experts), context] +
                              [" / ".join(number(s["tokens_per_second"]) for s in pair) for pair in both])
                shares.append([str(experts), context] +
                              [" / ".join(f"{100 * s['bandwidth_share']:.0f}" for s in pair) +
                               f" %, {1e3 * pair[0]['meeting_seconds']:.2f} ms" for pair in both])
        made[f"speed {label}"] = markdown(header, speeds)
        made[f"share {label}"] = markdown(header, shares)
    return made


def figure(program):
    command = [program, "plan", "--synthetic", MODELS[1][1], "--ctx", "256k", "--rope-scaling", "yarn:8:32768", "--quiet",
               *machine_options(MACHINES[1]), "--svg", "/dev/stderr"]
    run = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if run.returncode != 0: sys.exit(f"{shlex.join(command)}: exit {run.returncode}\n{run.stderr}")
    return run.stderr


def main(arguments):
    action = arguments.pop(0) if arguments and arguments[0] in ("--update", "--check") else ""
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        sys.exit("usage: tools/plan_tables.py [--update | --check] [CPUINFER]")
    program = arguments[0] if arguments else str(ROOT / "build/tools/cpuinfer")
    made = tables(program)
    if not action:
        print("\n\n".join(f"{name}\n\n{table}" for name, table in made.items()))
        return 0
    wanted = ((PAGE, filled(PAGE, made)), (FIGURE, figure(program)))
    if action == "--update":
        for path, text in wanted: path.write_text(text)
        return 0
    old = stale(wanted, ROOT)
    print("\n".join(old) or "page and figure agree")
    return 1 if old else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
