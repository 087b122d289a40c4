"""Raw tables to request files: download, features from the past only, train, calibration and test Parquet."""

__all__ = ["download", "prepare"]
