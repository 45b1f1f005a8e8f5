#!/usr/bin/env python3
"""The training and inference steps of `cargo bench --bench networks` in PyTorch.

A training step is forward, cross entropy, backward and SGD with momentum and weight decay on one synthetic batch that
stays on the device; an inference step is forward. Memory is channels_last, 16-bit types are autocast, cuDNN chooses
its algorithms by measuring, and f32 may use TF32. The ways:

  eager    op by op
  graph    captured once in a CUDA graph and replayed
  compile  torch.compile in mode max-autotune

By default it prints the median of --runs runs. With --serve it has the protocol of the bench's --workload: a line of
JSON when it is ready, then one for each line `run` on its input. Times are CUDA events', on the CPU the host's.
"""

import argparse
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

import models

# As in benches/common/step.rs and benches/networks.rs.
RATE, MOMENTUM, DECAY = 0.01, 0.9, 1e-4
RUN_SECONDS, MOST_STEPS = 0.5, 500
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
# Steps before a capture or a measurement: cuDNN's choices, the allocator, lazy loading.
WARM_UP = 11


class Step:
    """A network that is ready to run steps on one batch."""

    def __init__(self, args):
        self.device, self.training, self.way = torch.device(args.device), args.mode == "train", args.way
        self.cuda = self.device.type == "cuda"
        if self.way != "eager" and not self.cuda:
            raise ValueError(f"--way {self.way} needs a GPU")
        if args.dtype == "f16" and self.training:
            raise ValueError("f16 training needs loss scaling, which is not here; take bf16")
        torch.manual_seed(0)
        model, size, classes = models.build(args.model)
        self.model = model.to(self.device, memory_format=torch.channels_last).train(self.training)
        self.x = torch.randn(args.batch, 3, size, size, device=self.device).to(memory_format=torch.channels_last)
        self.labels = torch.randint(classes, (args.batch,), device=self.device)
        # A captured graph must not use autocast's cache; each weight is used once per step anyway.
        self.autocast = dict(device_type=self.device.type, dtype=DTYPES[args.dtype],
                             enabled=args.dtype != "f32", cache_enabled=False)
        self.optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM, weight_decay=DECAY, fused=self.cuda)
        if self.way == "compile":
            self.model = torch.compile(self.model, mode="max-autotune")
        self.step = self._train if self.training else self._infer
        for _ in range(WARM_UP if self.cuda else 1):
            self.step()
        if self.way == "graph":
            self.step = self._capture()
            self.step()

    def forward(self):
        with torch.autocast(**self.autocast):
            logits = self.model(self.x)
            return F.cross_entropy(logits, self.labels) if self.training else logits

    def _train(self):
        if self.way == "compile":
            torch.compiler.cudagraph_mark_step_begin()
        self.optimizer.zero_grad(set_to_none=True)
        self.forward().backward()
        self.optimizer.step()

    def _infer(self):
        if self.way == "compile":
            torch.compiler.cudagraph_mark_step_begin()
        with torch.inference_mode() if self.way != "compile" else torch.no_grad():
            self.forward()

    def _capture(self):
        """Captures the step as a CUDA graph, after the warm-up on a side stream that capturing needs."""
        step = self.step
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self.optimizer.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            step()
        return self.graph.replay

    def seconds(self, count):
        """The mean time of `count` steps."""
        if not self.cuda:
            start = time.perf_counter()
            for _ in range(count):
                self.step()
            return (time.perf_counter() - start) / count
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            self.step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3 / count


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--mode", choices=["train", "infer"], default="train")
    parser.add_argument("--batch", type=int, help="images; 256, for CIFAR 128, on the CPU 4")
    parser.add_argument("--dtype", choices=DTYPES, help="bf16, on the CPU f32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--way", choices=["eager", "graph", "compile"], default="eager")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--runs", type=int, default=7, help="whose median is printed")
    parser.add_argument("--serve", action="store_true", help="run when a line `run` asks for it")
    args = parser.parse_args()
    on_cpu = torch.device(args.device).type == "cpu"
    args.dtype = args.dtype or ("f32" if on_cpu else "bf16")
    args.batch = args.batch or (4 if on_cpu else 128 if "cifar" in args.model else 256)
    return args


def say(line):
    print(json.dumps(line), flush=True)


def main():
    args = arguments()
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    if args.threads:
        torch.set_num_threads(args.threads)
    step = Step(args)
    step.seconds(1)
    count = int(min(max(RUN_SECONDS / step.seconds(3 if step.cuda else 1), 1), MOST_STEPS))
    name = torch.cuda.get_device_name(step.device) if step.cuda else "cpu"
    version = f"torch {torch.__version__}"
    if args.serve:
        say({"ready": True, "device": name, "batch": args.batch, "steps": count, "version": version})
        for line in sys.stdin:
            if line.strip() == "run":
                say({"seconds": step.seconds(count), "steps": count})
        return
    seconds = statistics.median(step.seconds(count) for _ in range(args.runs))
    say({"model": args.model, "mode": args.mode, "way": args.way, "dtype": args.dtype, "batch": args.batch,
         "device": name, "version": version, "runs": args.runs, "steps": count, "seconds": seconds,
         "images_per_second": args.batch / seconds})


if __name__ == "__main__":
    main()
