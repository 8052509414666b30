"""The table of request audits (operational: written by the gateway, folded from nothing)."""

from __future__ import annotations

from gateway.http.ports import AuditRecord
from infra.db import index, table

AUDITS = table(
    AuditRecord,
    "gateway_request_audit",
    index("gateway_request_audit_newest", "tenant_id", "created_at", "id"),
    index("audit_age", "created_at"),
)
AUDIT_COLUMNS = tuple(column.name for column in AUDITS.columns)

STATS_SQL = f"""
with chosen as (select * from {AUDITS.name} where created_at >= $1),
routes as (
  select route, method, count(*) as requests, count(*) filter (where status_code >= 500) as failed,
         avg(duration_ms) as mean, percentile_cont(0.95) within group (order by duration_ms) as p95
  from chosen group by route, method
)
select json_build_object(
  'requests', (select count(*) from chosen),
  'by_status', (select coalesce(json_object_agg(status_code, n), '{{}}') from
                (select status_code, count(*) as n from chosen group by status_code) s),
  'mean_duration_ms', (select avg(duration_ms) from chosen),
  'p95_duration_ms', (select percentile_cont(0.95) within group (order by duration_ms) from chosen),
  'routes', (select coalesce(json_agg(json_build_object(
      'method', method, 'route', route, 'requests', requests, 'failed', failed,
      'mean_duration_ms', mean, 'p95_duration_ms', p95) order by requests desc, route, method), '[]')
             from (select * from routes order by requests desc limit 100) r)
)::text
"""
