"""The joint questions: what-if comparison, time to result along the run."""
