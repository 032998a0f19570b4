"""The model that every system trains, and the command line that the drivers have."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

SEARCHED = ("sim_soft", "eta", "twin")  # they select K behaviours and attend over these
MODELS = ("din", "sdim", *SEARCHED, "dien")
EMBEDDING = 16  # per field; item and category make D = 32
ATTENTION_UNITS = 64
TOWER_UNITS = (128, 64)
BATCH = 1_024  # samples, unless told otherwise; requests of 20 candidates make 1,020
SHORT = 50  # behaviours of the short branch, which DIN and DIEN do not have
KEPT = 50  # K of a search
EXACT_DIM = 64  # of the one head that attends over them, and of the vectors that SIM's search compares
EMBEDDING_STD = 1e-4  # FuxiCTR's default
GRADIENT_NORM = 10.0  # FuxiCTR's default
# Sostenuto's rows get so many times the learning rate. Each lives by its own clock, so Adam's first step on a row is
# one learning rate; by the clock of all steps it is (1 - beta1) / sqrt(1 - beta2) = 3.2, and dense moments go on.
ROW_RATE = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """The command line of a driver."""

    task: str
    data: Path
    model: str
    shape: str
    signatures: int
    hash_bits: int
    eta_bits: int
    batch: int
    learning_rate: float
    threads: int
    seed: int
    warmup: int
    steps: int
    seconds: float
    candidates: int
    backend: str
    precision: str


def parse(description: str | None, *, tasks: tuple[str, ...], models: tuple[str, ...] = MODELS) -> Given:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=tasks)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", choices=models, default="din")
    parser.add_argument("--shape", choices=["single", "shared"], default="single", help="1 or 20 candidates a request")
    parser.add_argument("--signatures", type=int, default=48, help="G of SDIM")
    parser.add_argument("--hash-bits", type=int, default=3, help="bits of one signature of SDIM")
    parser.add_argument("--eta-bits", type=int, default=64, help="of ETA's signature; Sostenuto fills words of 64")
    parser.add_argument("--batch", type=int, default=BATCH, help="samples of a training step")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--warmup", type=int, default=2, help="steps before the clock starts")
    parser.add_argument("--steps", type=int, default=3, help="measured steps at least")
    parser.add_argument("--seconds", type=float, default=10.0, help="measured seconds at least")
    parser.add_argument("--candidates", type=int, default=500, help="of the one user that is scored")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="Sostenuto only")
    parser.add_argument("--backend", choices=["auto", "plain", "native"], default="auto", help="Sostenuto only")
    return Given(**vars(parser.parse_args()))
