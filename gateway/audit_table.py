"""The table of request audits (operational: written by the gateway, folded from nothing), and how they are shown."""

from __future__ import annotations

from typing import Annotated

from typing_extensions import TypedDict

from gateway.http.ports import AuditRecord
from infra.db import index, instant, table
from projections.views import Moment, Tenant, Uuid, View
from schemas.examples import Example

AUDITS = table(
    AuditRecord,
    "gateway_request_audit",
    index("gateway_request_audit_newest", "tenant_id", "created_at", "id"),
    index("gateway_request_audit_request", "tenant_id", "request_id"),
    index("audit_age", "created_at"),
)
AUDIT_COLUMNS = tuple(column.name for column in AUDITS.columns)


class AuditView(TypedDict):
    """One request, as audited."""

    id: Uuid
    tenant_id: Tenant
    api_key_id: str | None
    user_id: str | None
    method: Annotated[str, Example("GET")]
    path: Annotated[str, Example("/gateway/runtime/runs")]
    route: Annotated[str, Example("/gateway/runtime/runs")]
    status_code: Annotated[int, Example(200)]
    duration_ms: Annotated[float, Example(1.25)]
    request_id: Annotated[str, Example("b1f6a0f2")]
    created_at: Moment


def audit_view(record: AuditRecord) -> AuditView:
    return {
        "id": record.id,
        "tenant_id": record.tenant_id,
        "api_key_id": record.api_key_id,
        "user_id": record.user_id,
        "method": record.method,
        "path": record.path,
        "route": record.route,
        "status_code": record.status_code,
        "duration_ms": record.duration_ms,
        "request_id": record.request_id,
        "created_at": instant(record.created_at),
    }


AUDIT = View("audit", AUDITS, AuditView, audit_view)

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
