"""From a response to a judgement."""
