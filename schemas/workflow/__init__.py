"""The workflow language: parser, graph, expressions, templates, node types."""
