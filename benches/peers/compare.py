#!/usr/bin/env python3
"""Alternates our steps with PyTorch's and prints the ratios as a Markdown table, for benches/RESULTS.md.

  benches/peers/compare.py --ours target/release/deps/networks-0123abcd

Ours is the bench binary `networks`. Each way of a workload is a process. The processes prepare one after the other, so
that none disturbs another's choice of algorithms, and then take turns, one run each, for --rounds rounds, so that a
falling clock rate affects all. If PyTorch is missing, or a way fails or is not ready in time, the table says so and has
the other rows; the exit status is 1 only if one of ours failed. A workload is MODEL[:train|infer[:BATCH]].
"""

import argparse
import datetime
import json
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
GPU_WORKLOADS = ["resnet50:train", "resnext50_32x4d:train", "densenet121:train", "resnet110_cifar:train",
                 "resnet110_cifar_survival05:train", "resnet50:infer", "resnext50_32x4d:infer",
                 "densenet121:infer", "resnet110_cifar:infer"]
CPU_WORKLOADS = ["resnet20_cifar:train", "resnet20_cifar:infer", "resnet18:train", "resnet18:infer"]
# A run is half a second or one step.
RUN_LIMIT = 120


class Runner:
    """A process that runs steps on request."""

    def __init__(self, name, command, env, log):
        self.name, self.error, self.seconds, self.ready = name, None, [], {}
        self.log = open(log, "w", encoding="utf-8")
        try:
            self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=self.log, text=True)
        except OSError as error:
            self.process, self.error = None, str(error)
            return
        self.lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            if line.startswith("{"):
                self.lines.put(line)
        self.lines.put(None)

    def answer(self, limit):
        """The next line of JSON; None, with a reason in `error`, if it does not come within `limit` seconds."""
        try:
            line = self.lines.get(timeout=max(limit, 0.1))
        except queue.Empty:
            self.stop(f"nothing in {limit:.0f} s")
            return None
        if line is None:
            self.process.wait()
            self.log.flush()
            told = Path(self.log.name).read_text(encoding="utf-8", errors="replace").strip().splitlines()
            self.stop(told[-1] if told else f"exit status {self.process.returncode}")
            return None
        return json.loads(line)

    def prepare(self, limit):
        """Waits until it is ready."""
        if not self.error:
            self.ready = self.answer(limit) or {}

    def run(self):
        """Makes a run and keeps its seconds per step."""
        if self.error:
            return
        try:
            self.process.stdin.write("run\n")
            self.process.stdin.flush()
        except OSError:
            # It has ended; `answer` reports why.
            pass
        answer = self.answer(RUN_LIMIT)
        if answer:
            self.seconds.append(answer["seconds"])

    def stop(self, error=None):
        """Ends the process; `error` is the reason if it ends too early."""
        self.error = self.error or error
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def median(self):
        return statistics.median(self.seconds) if self.seconds else None


class Compare:
    """The settings of all workloads: the device, the commands, the columns of the table."""

    def __init__(self, args):
        self.args = args
        self.on_cpu = args.device == "cpu"
        self.env = dict(os.environ)
        if args.threads:
            self.env.update(RAYON_NUM_THREADS=str(args.threads), OMP_NUM_THREADS=str(args.threads))
        self.logs = Path(args.logs)
        self.logs.mkdir(parents=True, exist_ok=True)
        self.failed = False
        self.theirs = [] if args.theirs == "none" else args.theirs.split(",")
        if self.theirs and not self.has_torch():
            print("PyTorch is not here, so only ours is measured: pip install torch torchvision", flush=True)
            self.theirs = []

    def has_torch(self):
        probe = [self.args.python, "-c", "import torch, torchvision"]
        try:
            return subprocess.run(probe, capture_output=True, check=False).returncode == 0
        except OSError:
            return False

    def parse(self, workload):
        model, mode, batch, *_ = (workload + "::").split(":")
        small = 8 if "cifar" in model else 2
        large = 128 if "cifar" in model else 256
        return model, mode or "train", int(batch or (small if self.on_cpu else large))

    def commands(self, model):
        """The name and the command of every way, ours first."""
        for replay in self.args.replay.split(","):
            name = "residuum" if self.on_cpu else f"residuum {replay}"
            yield name, [self.args.ours, "--workload", model, "--replay", replay]
        threads = ["--threads", str(self.args.threads)] if self.args.threads else []
        for way in self.theirs:
            script = [self.args.python, str(HERE / "torch_step.py"), "--serve"]
            yield f"PyTorch {way}", script + ["--model", model, "--way", way] + threads

    def measure(self, workload, deadline):
        """Prints the rows of one workload."""
        model, mode, batch = self.parse(workload)
        shared = ["--mode", mode, "--batch", str(batch), "--dtype", self.args.dtype, "--device", self.args.device]
        runners = []
        try:
            for name, command in self.commands(model):
                log = self.logs / f"{model}_{mode}_{batch}_{name.replace(' ', '_')}.log"
                runners.append(Runner(name, command + shared, self.env, log))
                runners[-1].prepare(min(self.args.limit, deadline - time.monotonic()))
            for _ in range(self.args.rounds):
                if time.monotonic() > deadline:
                    break
                for runner in runners:
                    runner.run()
            self.rows(f"{model} {mode}, batch {batch}, {self.args.dtype}", batch, runners)
        finally:
            for runner in runners:
                runner.stop()

    def rows(self, what, batch, runners):
        base = runners[0].median()
        for runner in runners:
            median = runner.median()
            if median is None:
                self.failed |= bool(runner.error) and runner.name.startswith("residuum")
                reason = (runner.error or "no time was left").replace("|", "/")
                print(f"| {what} | {runner.name} | not measured: {reason[:160]} | | | | {self.end(runner)}", flush=True)
                continue
            spread = (max(runner.seconds) - min(runner.seconds)) / median
            ratio = f"{median / base:.2f}" if base else ""
            print(f"| {what} | {runner.name} | {median * 1e3:.3f} ms | {batch / median:,.1f} | {spread:.0%} | {ratio} "
                  f"| {self.end(runner)}", flush=True)

    def end(self, runner):
        """The columns for machine, date and commit."""
        return f"{self.chip(runner)} | {datetime.date.today().isoformat()} | {self.args.commit} |"

    def chip(self, runner):
        if not self.on_cpu:
            return runner.ready.get("device", "")
        count = self.args.threads
        threads = f"{count} thread{'s' if count > 1 else ''} of " if count else ""
        return f"{threads}{os.cpu_count()} cores, {cpu_model()}"


def cpu_model():
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown CPU"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def commit():
    """The commit of the library: what ci/gpu.sh says, or git."""
    found = os.environ.get("RESIDUUM_COMMIT")
    if found:
        return found
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", help="MODEL[:train|infer[:BATCH]]; without any, the usual ones")
    parser.add_argument("--ours", required=True, help="the bench binary `networks`")
    parser.add_argument("--python", default=sys.executable, help="of an environment with torch and torchvision")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", help="bf16, on the CPU f32")
    parser.add_argument("--replay", help="ours: graph,launches; the first is the base of the ratios")
    parser.add_argument("--theirs", help="eager,graph,compile or none; on the CPU eager")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each, whose median is printed")
    parser.add_argument("--threads", type=int, help="of the CPU, for both")
    parser.add_argument("--limit", type=float, default=300, help="seconds in which a way must be ready")
    parser.add_argument("--seconds", type=float, default=86400, help="after which nothing more is started")
    parser.add_argument("--logs", default="compare-logs", help="folder for what the processes say")
    parser.add_argument("--commit", default=commit())
    args = parser.parse_intermixed_args()
    on_cpu = args.device == "cpu"
    args.dtype = args.dtype or ("f32" if on_cpu else "bf16")
    args.replay = args.replay or ("graph" if on_cpu else "graph,launches")
    args.theirs = args.theirs or ("eager" if on_cpu else "eager,graph,compile")
    args.workloads = args.workloads or (CPU_WORKLOADS if on_cpu else GPU_WORKLOADS)
    return args


def main():
    args = arguments()
    deadline = time.monotonic() + args.seconds
    compare = Compare(args)
    print("| step | way | median | images/s | spread | time / ours | machine | date | commit |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for workload in args.workloads:
        if time.monotonic() > deadline:
            print(f"| {workload} | all | not measured: no time was left | | | | | | |", flush=True)
            continue
        compare.measure(workload, deadline)
    return int(compare.failed)


if __name__ == "__main__":
    sys.exit(main())
