"""Published hallucination benchmarks: from their files to questions, from answers to metrics."""
