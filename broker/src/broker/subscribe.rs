//! SUBSCRIBE and UNSUBSCRIBE.

use std::borrow::Cow;

use smallvec::SmallVec;

use super::Broker;
use crate::broker::Now;
use crate::mqtt::{ReasonCode, RetainHandling, Subscribe, Subscription, Unsubscribe, Version, encode};
use crate::record::{Append, Entry, Offset, Qos};
use crate::router::SubscriptionOptions;
use crate::session::control::Control;
use crate::session::{Flow, RetainedDelivery};
use crate::slots::Key;
use crate::topic::TopicFilter;

impl Broker {
    pub(super) fn handle_subscribe(
        &mut self,
        key: Key,
        subscribe: &Subscribe<'_>,
        now: Now,
        log: &mut dyn Append,
    ) {
        let Some(connection) = self.connections.get(key) else { return };
        let (version, Some(session_key)) = (connection.version, connection.session) else { return };
        let mut codes: SmallVec<[ReasonCode; 8]> = SmallVec::new();
        let mut granted = Vec::new();
        for subscription in subscribe.subscriptions {
            match grant(&subscription) {
                Ok(filter) => {
                    codes.push(granted_qos(subscription.qos));
                    granted.push((filter, subscription));
                }
                Err(reason) => codes.push(reason),
            }
        }
        if let Some(kept) = self.sessions.get(session_key).filter(|session| session.is_kept()) {
            let since = log.end();
            let filters = granted.iter().map(|(filter, subscription)| {
                let options = options(subscription, subscribe.subscription_id, since);
                (Cow::Borrowed(filter.as_str()), options)
            });
            let entry = Control::Subscribed { session: kept.number, filters: filters.collect() }.encode();
            if log.append(&Entry::Control(&entry)).is_err() {
                codes.iter_mut().for_each(|code| *code = ReasonCode::QuotaExceeded);
                granted.clear();
            }
        }
        let since = log.end();
        for (filter, subscription) in granted {
            let options = options(&subscription, subscribe.subscription_id, since);
            self.subscribe_one(session_key, filter, options, subscription.retain_handling, now);
        }
        if version != Version::V5 {
            // MQTT 3 knows one failure [MQTT-3.9.3-2].
            codes
                .iter_mut()
                .filter(|code| code.as_u8() >= 0x80)
                .for_each(|code| *code = ReasonCode::UnspecifiedError);
        }
        let mut packet = Vec::with_capacity(8 + codes.len());
        encode::suback(&mut packet, version, subscribe.packet_id, &codes);
        self.answer(key, since, packet, now, log);
        self.want_read(session_key);
    }

    fn subscribe_one(
        &mut self,
        session_key: Key,
        filter: TopicFilter,
        options: SubscriptionOptions,
        handling: RetainHandling,
        now: Now,
    ) {
        let durable_end = self.durable_end;
        if let Ok(Some((_, shared))) = filter.shared() {
            // No retained records for shared subscriptions: which member would get them?
            self.join(session_key, &filter, shared, options);
            if let Some(session) = self.sessions.get_mut(session_key) {
                session.filters.insert(filter, options);
            }
            return;
        }
        let Some(session) = self.sessions.get_mut(session_key) else { return };
        self.router.subscribe(&filter, session_key, options);
        let wants_retained = match handling {
            RetainHandling::Send => true,
            RetainHandling::SendIfNew => !session.filters.contains_key(&filter),
            RetainHandling::DoNotSend => false,
        };
        if wants_retained {
            let before = session.retained.len();
            let gate = options.since;
            session.retained.extend(
                self.retained
                    .matching(&filter)
                    .into_iter()
                    .filter(|retained| !retained.is_expired(now.wall))
                    .filter(|retained| {
                        !(options.no_local && retained.client == session.client.as_ref().into())
                    })
                    .map(|retained| {
                        let qos = options.qos.min(retained.qos);
                        RetainedDelivery { retained, qos, identifier: options.identifier, gate }
                    }),
            );
            if session.retained.len() > before && session.flow == Flow::Live {
                // What arrives meanwhile comes behind them.
                session.fall_behind(durable_end, options.since);
            }
        }
        session.filters.insert(filter, options);
    }

    pub(super) fn handle_unsubscribe(
        &mut self,
        key: Key,
        unsubscribe: &Unsubscribe<'_>,
        now: Now,
        log: &mut dyn Append,
    ) {
        let Some(connection) = self.connections.get(key) else { return };
        let (version, Some(session_key)) = (connection.version, connection.session) else { return };
        let Some(session) = self.sessions.get_mut(session_key) else { return };
        let mut codes: SmallVec<[ReasonCode; 8]> = SmallVec::new();
        let mut removed = Vec::new();
        for text in unsubscribe.filters {
            let filter =
                TopicFilter::new(text).ok().filter(|filter| session.filters.remove(filter).is_some());
            codes.push(if filter.is_some() {
                ReasonCode::Success
            } else {
                ReasonCode::NoSubscriptionExisted
            });
            if let Some(filter) = filter {
                removed.push((filter, Cow::Borrowed(text)));
            }
        }
        for (filter, _) in &removed {
            self.unsubscribe_one(session_key, filter);
        }
        let Some(session) = self.sessions.get(session_key) else { return };
        if session.is_kept() && !removed.is_empty() {
            let filters = removed.into_iter().map(|(_, text)| text).collect();
            let entry = Control::Unsubscribed { session: session.number, filters }.encode();
            // If the journal is full or has failed, a restart brings the subscription back: more, never less.
            let _ = log.append(&Entry::Control(&entry));
        }
        let mut packet = Vec::with_capacity(8 + codes.len());
        encode::unsuback(&mut packet, version, unsubscribe.packet_id, &codes);
        self.answer(key, log.end(), packet, now, log);
    }
}

impl Broker {
    /// Ends one subscription of a session, which no longer lists it.
    pub(super) fn unsubscribe_one(&mut self, session_key: Key, filter: &TopicFilter) {
        match filter.shared() {
            Ok(Some(_)) => self.part(session_key, filter),
            Ok(None) | Err(_) => _ = self.router.unsubscribe(filter, session_key),
        }
    }
}

fn grant(subscription: &Subscription<'_>) -> Result<TopicFilter, ReasonCode> {
    let filter = TopicFilter::new(subscription.filter).map_err(|_| ReasonCode::TopicFilterInvalid)?;
    match filter.shared() {
        Ok(_) => Ok(filter),
        Err(_) => Err(ReasonCode::TopicFilterInvalid),
    }
}

const fn granted_qos(qos: Qos) -> ReasonCode {
    match qos {
        Qos::AtMostOnce => ReasonCode::Success,
        Qos::AtLeastOnce => ReasonCode::GrantedQos1,
        Qos::ExactlyOnce => ReasonCode::GrantedQos2,
    }
}

const fn options(
    subscription: &Subscription<'_>,
    identifier: Option<u32>,
    since: Offset,
) -> SubscriptionOptions {
    SubscriptionOptions {
        qos: subscription.qos,
        no_local: subscription.no_local,
        retain_as_published: subscription.retain_as_published,
        identifier,
        since,
    }
}
