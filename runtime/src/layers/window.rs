//! Which rows of a pass go to which expert.
//!
//! Owns the plan of one window: experts in ascending order, and a place for every pick (row * used + rank) such
//! that the picks of one expert lie together. It must not know where experts are.

use super::route::Route;

/// Which picks go to which expert. Picks are placed expert after expert: hidden values and outputs of one
/// expert lie together.
pub struct WindowPlan {
    /// Distinct experts, ascending.
    pub experts: Vec<u32>,
    /// By place: the row of the pick there.
    pub rows: Vec<u32>,
    /// By pick: its place.
    pub place: Vec<u32>,
    /// By expert id: where its places start; one more entry than experts.
    starts: Vec<u32>,
}

impl WindowPlan {
    /// Of `routes`, `used` a row, among `experts` experts.
    pub fn new(routes: &[Route], (experts, used): (usize, usize)) -> WindowPlan {
        let mut starts = vec![0u32; experts + 1];
        routes.iter().for_each(|route| starts[route.expert as usize + 1] += 1);
        (0..experts).for_each(|e| starts[e + 1] += starts[e]);
        let mut fill = starts.clone();
        let (mut rows, mut place) = (vec![0u32; routes.len()], vec![0u32; routes.len()]);
        for (pick, route) in routes.iter().enumerate() {
            let at = &mut fill[route.expert as usize];
            rows[*at as usize] = (pick / used) as u32;
            place[pick] = *at;
            *at += 1;
        }
        let distinct = (0..experts as u32).filter(|e| starts[*e as usize] < starts[*e as usize + 1]);
        WindowPlan { experts: distinct.collect(), rows, place, starts }
    }

    /// Places of an expert's picks.
    pub fn places(&self, expert: u32) -> std::ops::Range<usize> {
        let expert = expert as usize;
        self.starts[expert] as usize..self.starts[expert + 1] as usize
    }

    /// Rows that chose each of `experts`.
    pub fn counts(&self, experts: &[u32]) -> Vec<u32> {
        experts.iter().map(|expert| self.places(*expert).len() as u32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pick_has_one_place_among_those_of_its_expert() {
        let experts = [3u32, 1, 1, 0, 3, 2, 1, 3];
        let routes: Vec<Route> = experts.iter().map(|e| Route { expert: *e, weight: 1.0 }).collect();
        let plan = WindowPlan::new(&routes, (5, 2));
        assert_eq!(plan.experts, [0, 1, 2, 3]);
        assert_eq!(plan.counts(&plan.experts), [1, 3, 1, 3]);
        assert_eq!(&plan.rows[plan.places(1)], [0, 1, 3]);
        assert_eq!(&plan.rows[plan.places(3)], [0, 2, 3]);
        assert!(plan.places(4).is_empty());
        for (pick, expert) in experts.iter().enumerate() {
            let place = plan.place[pick] as usize;
            assert!(plan.places(*expert).contains(&place));
            assert_eq!(plan.rows[place] as usize, pick / 2);
        }
    }
}
