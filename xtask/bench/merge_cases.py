"""The cases of the merge suite: one factor differs from the first case in each of the others."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    name: str
    sources: int = 2
    overlap: int = 50  # percent of a source's keys that the next one has too
    key: str = "int"  # int, uuid, pair
    columns: str = "mixed"  # mixed, wide, lww, max
    sorted: bool = False
    format: str = "parquet"  # parquet, csv, memory: Parquet that is read before the clock starts, a table as the result

    @property
    def ending(self):
        return "csv" if self.format == "csv" else "parquet"

    @property
    def keys(self):
        return ["id", "region"] if self.key == "pair" else ["id"]

    @property
    def data(self):
        """What the files depend on."""
        return f"s{self.sources}-o{self.overlap}-{self.key}-{self.columns}-{'sorted' if self.sorted else 'shuffled'}-{self.ending}"

    @property
    def values(self):
        """Columns with their strategies."""
        if self.columns == "lww":
            return [("status", "lww")]
        if self.columns == "max":
            return [("high", "max"), ("ts", "max")]
        mixed = [("status", "lww"), ("high", "max"), ("low", "min"), ("tags", "union"), ("name", "lww")]
        if self.columns == "wide":
            mixed += [(f"n{i}", "lww" if i % 2 else "max") for i in range(54)]
        return mixed

    @property
    def statement(self):
        strategies = ", ".join(f"{c} = {s}" for c, s in self.values if s != "lww" and c != "ts")
        strategies = f"STRATEGY {strategies}, ts = max" if strategies else "STRATEGY ts = max"
        files = ", ".join(f"t{i}" if self.format == "memory" else f"'{i}.{self.ending}'" for i in range(self.sources))
        return f"MERGE {files} ON ({', '.join(self.keys)}) {strategies} VERSION BY ts"


CASES = [
    Case("five columns, 2 sources"),
    Case("8 sources", sources=8),
    Case("no overlap", overlap=0),
    Case("all keys in both", overlap=100),
    Case("UUID keys", key="uuid"),
    Case("composite keys", key="pair"),
    Case("60 columns", columns="wide"),
    Case("lww alone", columns="lww"),
    Case("max alone", columns="max"),
    Case("sorted by key", sorted=True),
    Case("CSV", format="csv"),
    Case("tables in memory", format="memory"),
]
