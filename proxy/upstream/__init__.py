"""The provider's side: clusters, their endpoints, pooled connections, one handle per call."""
