"""Chemical reactions as graphs of atoms: an acid and an alcohol give an ester and water, of many lengths."""

from __future__ import annotations

import dataclasses
from collections import deque

import numpy as np

CARBON, OXYGEN = 6, 8
# What the model's tables count from: 0 is padding and 1 the extra token that stands for a molecule or the reaction.
FIRST = 2
FARTHEST = 10  # bonds
APART = 1  # of atoms that no path joins
ROLE_WHOLE, ROLE_REACTANT, ROLE_PRODUCT = 1, 2, 3


@dataclasses.dataclass(frozen=True)
class Molecule:
    """Atomic numbers, with hydrogen left out, the number of each atom's hydrogens, and bonds by the atoms' places."""

    atoms: tuple[int, ...]
    hydrogens: tuple[int, ...]
    bonds: tuple[tuple[int, int], ...]

    def distances(self) -> np.ndarray:
        """Bonds on the shortest path, int64 [atoms, atoms]; -1 where there is none."""
        neighbours: list[list[int]] = [[] for _ in self.atoms]
        for one, other in self.bonds:
            neighbours[one].append(other)
            neighbours[other].append(one)
        found = np.full((len(self.atoms), len(self.atoms)), -1)
        for start in range(len(self.atoms)):
            found[start, start] = 0
            queue = deque([start])
            while queue:
                here = queue.popleft()
                for there in (place for place in neighbours[here] if found[start, place] < 0):
                    found[start, there] = found[start, here] + 1
                    queue.append(there)
        return found


def chain(length: int, first: int) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Atoms, hydrogens and bonds of an unbranched carbon chain whose atoms have the places `first` and on; its first
    has one bond free."""
    hydrogens = [2] * (length - 1) + [3]
    return [CARBON] * length, hydrogens, [(first + k, first + k + 1) for k in range(length - 1)]


def acid(length: int) -> Molecule:
    """A carboxylic acid with `length` carbons behind its own."""
    atoms, hydrogens, bonds = chain(length, 3)
    return Molecule((CARBON, OXYGEN, OXYGEN, *atoms), (0, 0, 1, *hydrogens), ((0, 1), (0, 2), (0, 3), *bonds))


def alcohol(length: int) -> Molecule:
    """An alcohol with its oxygen at the end of the chain."""
    atoms, hydrogens, bonds = chain(length, 1)
    return Molecule((OXYGEN, *atoms), (1, *hydrogens), ((0, 1), *bonds))


def ester(acids: int, alcohols: int) -> Molecule:
    """What the two give."""
    left = acid(acids)
    atoms, hydrogens, bonds = chain(alcohols, len(left.atoms))
    joined = (2, len(left.atoms))  # the acid's OH loses its hydrogen to the alcohol's chain
    bare = (0, 0, 0, *left.hydrogens[3:])
    return Molecule((*left.atoms, *atoms), (*bare, *hydrogens), (*left.bonds, joined, *bonds))


WATER = Molecule((OXYGEN,), (2,), ())


def encoded(reactants: list[Molecule], products: list[Molecule]) -> dict[str, np.ndarray]:
    """The model's inputs: int64 [1, n] atoms, neighbors, roles, and [1, n, n] distances; the reaction's own token,
    then for each molecule its atoms."""
    atoms, neighbours, roles = [1], [0], [ROLE_WHOLE]
    blocks = []
    for role, molecules in ((ROLE_REACTANT, reactants), (ROLE_PRODUCT, products)):
        for molecule in molecules:
            degrees = np.bincount(np.ravel(molecule.bonds).astype(int), minlength=len(molecule.atoms))
            atoms += [number + FIRST for number in molecule.atoms]
            neighbours += [int(sum(pair)) + FIRST for pair in zip(degrees, molecule.hydrogens, strict=True)]
            roles += [role] * len(molecule.atoms)
            blocks.append(np.minimum(molecule.distances(), FARTHEST) + FIRST)
    distances = np.full((len(atoms), len(atoms)), APART)
    place = 1
    for block in blocks:
        distances[place : place + len(block), place : place + len(block)] = block
        place += len(block)
    rows = {"atoms": atoms, "neighbors": neighbours, "roles": roles}
    return {name: np.array([row], np.int64) for name, row in rows.items()} | {"distances": distances[None]}


def reactions(count: int) -> list[dict[str, np.ndarray]]:
    """Esterifications, each of other lengths, from acetic acid and methanol on."""
    pairs = [(acids, alcohols) for acids in range(1, 18) for alcohols in range(1, 18)]
    step = max(1, len(pairs) // count)
    return [
        encoded([acid(acids), alcohol(alcohols)], [ester(acids, alcohols), WATER])
        for acids, alcohols in pairs[::step][:count]
    ]
