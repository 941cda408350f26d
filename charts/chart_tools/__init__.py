"""Makes everything about the chart that is generated: schema, table of values, plain manifests."""
