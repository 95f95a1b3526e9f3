"""Measuring: device benchmarks and ladders of sizes."""
