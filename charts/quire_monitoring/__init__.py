"""Makes what people watch Quire with: Grafana dashboards, Prometheus rules, and their runbook."""
