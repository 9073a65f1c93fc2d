//! SUBSCRIBE and UNSUBSCRIBE.

use std::borrow::Cow;

use smallvec::SmallVec;

use super::{Broker, Limit};
use crate::broker::Now;
use crate::mqtt::{ReasonCode, RetainHandling, Subscribe, Subscription, Unsubscribe, Version, encode};
use crate::record::{Append, Entry, Offset, Qos};
use crate::router::SubscriptionOptions;
use crate::session::control::Control;
use crate::session::{Flow, RetainedDelivery};
use crate::slots::Key;
use crate::topic::{TopicError, TopicFilter};

/// Retained records that may wait for a client from earlier subscriptions; with more, further ones are refused.
const RETAINED_WAITING_MAX: usize = 65_536;

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
        let mut filters = self.sessions.get(session_key).map_or(0, |session| session.filters.len());
        for subscription in subscribe.subscriptions {
            match self.grant(session_key, &subscription, filters) {
                Ok(filter) if !self.may_subscribe(key, &filter, now) => codes.push(ReasonCode::NotAuthorized),
                Ok(filter) => {
                    filters += 1;
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

    /// The filter of a subscription, if it may be had by a session that has `filters` already.
    fn grant(
        &mut self,
        session_key: Key,
        subscription: &Subscription<'_>,
        filters: usize,
    ) -> Result<TopicFilter, ReasonCode> {
        let filter = match TopicFilter::new(subscription.filter) {
            Ok(filter) => filter,
            Err(error) => {
                if error == TopicError::TooManyLevels {
                    self.reached(Limit::TopicLevels);
                }
                return Err(ReasonCode::TopicFilterInvalid);
            }
        };
        if filter.shared().is_err() {
            return Err(ReasonCode::TopicFilterInvalid);
        }
        if self.is_too_deep(filter.as_str()) {
            self.reached(Limit::TopicLevels);
            return Err(ReasonCode::TopicFilterInvalid);
        }
        let Some(session) = self.sessions.get(session_key) else { return Ok(filter) };
        if session.retained.len() > RETAINED_WAITING_MAX {
            self.reached(Limit::OutgoingBytes);
            return Err(ReasonCode::QuotaExceeded);
        }
        if filters >= self.limits.subscriptions && !session.filters.contains_key(&filter) {
            self.reached(Limit::Subscriptions);
            return Err(ReasonCode::QuotaExceeded);
        }
        Ok(filter)
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
        let (rules, connections) = (&self.rules, &self.connections);
        let Some(session) = self.sessions.get_mut(session_key) else { return };
        let Some(connection) = session.connection.and_then(|key| connections.get(key)) else { return };
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
                [&self.retained, &self.system.values]
                    .into_iter()
                    .flat_map(|store| store.matching(&filter))
                    .filter(|retained| !retained.is_expired(now.wall))
                    .filter(|retained| connection.may_receive(rules, retained.record().topic))
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
        let Some(session) = self.sessions.get(session_key) else { return };
        let mut codes: SmallVec<[ReasonCode; 8]> = SmallVec::new();
        let mut removed = Vec::new();
        for text in unsubscribe.filters {
            let filter = TopicFilter::new(text).ok().filter(|filter| session.filters.contains_key(filter));
            codes.push(if filter.is_some() {
                ReasonCode::Success
            } else {
                ReasonCode::NoSubscriptionExisted
            });
            removed.extend(filter.map(|filter| (filter, Cow::Borrowed(text))));
        }
        if session.is_kept() && !removed.is_empty() {
            let filters = removed.iter().map(|(_, text)| text.clone()).collect();
            let entry = Control::Unsubscribed { session: session.number, filters }.encode();
            if log.append(&Entry::Control(&entry)).is_err() {
                // A restart would bring the subscription back, so it must not seem to be gone.
                if version != Version::V5 {
                    self.disconnect(key, ReasonCode::ImplementationSpecificError, now, log);
                    return;
                }
                codes.iter_mut().for_each(|code| *code = ReasonCode::ImplementationSpecificError);
                removed.clear();
            }
        }
        for (filter, _) in &removed {
            if let Some(session) = self.sessions.get_mut(session_key) {
                session.filters.remove(filter);
            }
            self.unsubscribe_one(session_key, filter);
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
