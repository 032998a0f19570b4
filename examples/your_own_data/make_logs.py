"""Write two small logs like those that people have: a shop's, compressed and with bad rows, and one of impressions.

python examples/your_own_data/make_logs.py my-data
"""

from __future__ import annotations

import csv
import gzip
import io
import shutil
import sys
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np

BERLIN = ZoneInfo("Europe/Berlin")
START = datetime(2023, 3, 1, tzinfo=BERLIN)
BAD_LINES = [
    b",a17,05.04.2023 10:00:00,kauf,3.10,Mitte,web",  # nobody
    b"k3,,05.04.2023 10:00:00,kauf,3.10,Mitte,web",  # nothing
    b"k3,a17,2023-04-05 10:00,kauf,3.10,Mitte,web",  # another way to write the time
    b"k3,a17,26.03.2023 02:30:00,kauf,3.10,Mitte,web",  # clocks went from 2 to 3 that night
    b"k3,a17,05.04.2032 10:00:00,kauf,3.10,Mitte,web",  # a typing error, nine years ahead
    b"k3,a17,05.04.2023 10:00:00,kauf",  # cut off
    b'k3,"a17,05.04.2023 10:00:00,kauf,3.10,Mitte,web',  # a quote that never ends
    b"k3,a17,05.04.2023 10:00:00,kauf,3.10,K\xf6penick,web",  # latin-1 in a UTF-8 file
]
BAD_NUMBER = b'k3,a17,05.04.2023 10:00:00,kauf,"3,10",Mitte,web'  # kept, without its amount


def shop(folder: Path, rng: np.random.Generator) -> None:
    """Customers come again for what they like; every article has a department, a type and a price."""
    users, items, visits = 200, 300, 25
    department, kind = rng.integers(0, 6, items), rng.integers(0, 30, items)
    price = rng.gamma(2.0, 4.0, items).round(2)
    lines: list[tuple[datetime, list[str]]] = []
    for user in range(users):
        liked = rng.choice(items, 12, replace=False)
        for _ in range(int(rng.integers(3, 2 * visits))):
            # local wall-clock time, as tills write it
            when = START + timedelta(days=int(rng.integers(0, 90)), minutes=int(rng.integers(8 * 60, 20 * 60)))
            place, channel = str(rng.choice(["Mitte", "Pankow"])), str(rng.choice(["web", "laden"]))
            for _ in range(int(rng.integers(1, 5))):
                item = int(rng.choice(liked)) if rng.random() < 0.7 else int(items * rng.random() ** 2)
                action = "kauf" if rng.random() < 0.6 else "ansicht"
                amount = str(price[item]) if action == "kauf" else ""
                cells = [f"k{user}", f"a{item}", when.strftime("%d.%m.%Y %H:%M:%S"), action, amount, place, channel]
                lines.append((when, cells))
    lines.sort(key=lambda line: line[0])
    header = ["kunde", "artikel", "zeit", "vorgang", "betrag", "filiale", "kanal"]
    (folder / "shop").mkdir(exist_ok=True)
    half = len(lines) // 2
    for name, part in (("spring", lines[:half]), ("summer", lines[half:])):
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([header, *(cells for _, cells in part)])
        text = out.getvalue().encode()
        if name == "summer":
            text += b"\n".join([*BAD_LINES, BAD_NUMBER]) + b"\n"
        with gzip.GzipFile(folder / "shop" / f"{name}.csv.gz", "wb", mtime=0) as file:
            file.write(text)
    with (folder / "articles.csv").open("w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["artikel", "department", "type", "brand", "weight_kg", "labels", "title"])
        for item in range(items):
            labels = "|".join(label for label in ("bio", "vegan", "new") if rng.random() < 0.3)
            row = [f"a{item}", f"department {department[item]}", f"type {kind[item]}", f"brand {item % 17}"]
            writer.writerow([*row, round(float(rng.gamma(2.0, 0.3)), 3), labels, f"article {item}"])


def impressions(folder: Path, rng: np.random.Generator) -> None:
    """Visitors are shown some products and take what they took before, if it is cheap enough."""
    users, items = 150, 200
    liked = [set(rng.choice(items, 15, replace=False).tolist()) for _ in range(users)]
    price = rng.gamma(2.0, 6.0, items).round(2)
    start_ms = int(START.timestamp()) * 1_000
    with (folder / "impressions.csv").open("w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["visitor", "shown_at", "page", "products", "clicked", "prices", "slots", "device"])
        for number in range(4_000):
            user = int(rng.integers(users))
            mine = rng.choice(sorted(liked[user]), 2, replace=False)
            shown = list(dict.fromkeys([*mine.tolist(), *rng.choice(items, 6, replace=False).tolist()]))
            rng.shuffle(shown)
            wish = np.array([2.0 * (item in liked[user]) - 0.05 * price[item] for item in shown])
            wish = np.append(wish + rng.gumbel(size=len(shown)), 0.5 + rng.gumbel())
            best = int(wish.argmax())
            writer.writerow(
                [
                    f"v{user}",
                    start_ms + number * 1_500_000 + int(rng.integers(1_000_000)),
                    str(rng.choice(["home", "search"])),
                    "|".join(f"p{item}" for item in shown),
                    f"p{shown[best]}" if best < len(shown) else "",
                    "|".join(str(price[item]) for item in shown),
                    "|".join(str(slot) for slot in range(1, len(shown) + 1)),
                    str(rng.choice(["phone", "desktop"])),
                ]
            )


def main(folder: Path) -> None:
    """Write both logs and their specs into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    shop(folder, np.random.default_rng(0))
    impressions(folder, np.random.default_rng(1))
    for name in ("shop.toml", "impressions.toml"):
        shutil.copy(Path(__file__).parent / name, folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "my-data"))
