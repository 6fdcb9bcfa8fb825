"""The list of faults of tests/mutants.py."""

import pathlib

from helpers.mutants import MUTANTS

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_every_fault_can_be_applied_and_the_tests_listed_with_it_exist():
    broken = [fault.name for fault in MUTANTS if (ROOT / fault.file).read_text().count(fault.old) != 1]
    for fault in MUTANTS:
        for file, _, name in (test.partition("::") for test in fault.tests):
            if f"\ndef {name.partition('[')[0]}(" not in (ROOT / file).read_text():
                broken.append(f"{fault.name}: {file}::{name}")
    assert not broken
