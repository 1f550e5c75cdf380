"""The OpenAI protocol: its clients work unchanged against models that generate or embed text."""

from mlserve.protocols.openai.protocol import OpenAIProtocol

__all__ = ["OpenAIProtocol"]
