//! HTTP: health, status, WebSocket, SSE, publish, dashboard.
