"""Adapters to agent frameworks, one package each. Each needs the extra of its name, and none imports another."""
