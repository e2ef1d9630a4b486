//! Connections: how many, how long they may be silent, and how they end.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;

use super::App;

/// Time for the last words of what is cut off.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves until `shutdown` comes and the requests of then have ended, or their time is over.
pub(super) async fn run(
    app: &Arc<App>,
    router: Router,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let limits = &app.options.limits;
    let timeout = limits.timeout;
    let mut builder = http1::Builder::new();
    // Also the time between two requests of a connection.
    builder.timer(TokioTimer::new()).header_read_timeout(timeout);
    let places = Arc::new(Semaphore::new(limits.connections.max(1)));
    let graceful = GracefulShutdown::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await.ok()?;
            Some((listener.accept().await, place))
        };
        let (accepted, place) = tokio::select! {
            () = &mut shutdown => break,
            next = next => match next { Some(next) => next, None => break },
        };
        let Ok((stream, _)) = accepted else {
            // The client is gone already, or the process has no file left for it: both pass.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let io = TokioIo::new(timed(stream, timeout));
        let connection = builder.serve_connection(io, TowerToHyperService::new(router.clone()));
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // An error is the client's doing: junk, silence, or gone.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    app.engine.close();
    let mut ended = pin!(graceful.shutdown());
    let in_time = tokio::time::timeout(timeout, &mut ended).await.is_ok();
    let app = Arc::clone(app);
    // A panic in it has been told of on stderr.
    let _ = tokio::task::spawn_blocking(move || app.engine.stop()).await;
    if !in_time {
        // Those that were cut off are told so.
        let _ = tokio::time::timeout(FAREWELL, ended).await;
    }
    Ok(())
}

/// A stream that fails when its client takes nothing for so long.
fn timed(stream: TcpStream, timeout: Duration) -> std::pin::Pin<Box<TimeoutStream<TcpStream>>> {
    // Tokens are small, and each is wanted at once.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(timeout));
    Box::pin(stream)
}
