"""What leaves a gateway for the systems that watch it: metrics in Prometheus' format."""
